"""How operators are made fast: a folder a compiler, a file an operator. Nothing here is imported before it is needed.

A kernel file holds three functions, called with the operator's own arguments (batched tensors, checked):

- ``why_not(*args)``: a sentence that says why this kernel can't take these arguments, or None;
- ``forward(*args)``: the output, with the shape, dtype and memory format that the reference gives;
- ``backward(grad, *args)``: a list with the gradient of each tensor argument, like ``torch.empty_like`` of it.

Three differ: ``add_relu_mean`` and ``pix_sample`` have no ``backward``, ``pix_layer`` no ``forward``, and the last two
take arguments of their own.
"""
