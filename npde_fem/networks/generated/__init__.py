"""Networks that an equation generates: convolutional, residual, dense, recurrent, and on meshes."""
