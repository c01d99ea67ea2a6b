"""The cost figures that the sources print, as they print them. Ours are computed, never written down here."""

# FACS, tables 2, 4 and 5: our name, parameters in millions, operations in billions, at 224×224.
NETWORKS = (
    ("resnet50", "25.5", "4.12"),
    ("pix_resnet50", "25.5", "3.18"),
    ("resnet101", "44.5", "7.85"),
    ("pix_resnet101", "44.5", "6.05"),
    ("resnet152", "60.1", "11.58"),
    ("pix_resnet152", "60.1", "8.91"),
    ("resnet50_r8", "12.3", "1.85"),
    ("pix_resnet50_r8", "12.3", "1.39"),
    ("seresnet50", "28.0", "4.13"),
    ("pix_seresnet50", "28.0", "3.19"),
    ("vgg16_1x1_r2", "10.3", "10.0"),
    ("pix_vgg16_1x1_r2", "10.3", "9.3"),
    ("vgg16_1x1_r4", "7.4", "6.7"),
    ("pix_vgg16_1x1_r4", "7.4", "6.3"),
    ("mobilenetv2_100", "3.50", "0.32"),
    ("pix_mobilenetv2_100", "3.50", "0.25"),
    ("mobilenetv2_100_full", "25.2", "4.65"),
    ("pix_mobilenetv2_100_full", "25.2", "4.58"),
    ("dwp_resnet50", "19.6", "2.82"),
)
# What the source says too little about to derive: ours is one reading of it.
NOT_DERIVABLE = ("dwp_resnet50",)

# PiX supplement, table 1: module, height and width at 512 channels, operations in millions, megabytes.
MODULES = (
    ("SE", 112, "12.8", "25.694336"),
    ("CBAM", 112, "38.6", "51.639424"),
    ("FBS", 112, "45.2", "51.384320"),
    ("PiX", 112, "6.6", "25.694208"),
    ("SE", 56, "3.2", "6.426752"),
    ("CBAM", 56, "9.6", "12.916096"),
    ("FBS", 56, "11.5", "12.849152"),
    ("PiX", 56, "1.8", "6.426624"),
    ("SE", 28, ".837", "1.609856"),
    ("CBAM", 28, "2.4", "3.235264"),
    ("FBS", 28, "3.0", "3.215360"),
    ("PiX", 28, "0.6", "1.609728"),
)
MODULE_CHANNELS = 512

# PiX supplement, section E, and FACS, appendix A.7: operations on 12×5×5 with r = 4. Both also print 811 for PiX, and
# FACS 8475 for the squeeze.
_SLIP = "the source takes 12·5·5 as 250 in its sum"
WORKED_EXAMPLE = (
    ("squeeze", "1275", ""),
    ("PiX, threshold fusion", "523", _SLIP),
    ("PiX, weighted fusion", "748", _SLIP),
)
WORKED_SHAPE, WORKED_REDUCTION = (12, 5, 5), 4
