"""Names and signatures of published packages, so that code written for them runs by changing one import."""
