"""The kinds of networks that an equation generates: convolutional, residual, dense, recurrent, and on meshes."""
