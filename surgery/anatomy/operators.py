"""The vocabulary of aten operators, by what they do to the channels that pass through."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVES = _words("""
    _autocast_to_full_precision _autocast_to_reduced_precision _conj _to_copy _unsafe_view adjoint
    alias alias_copy as_strided broadcast_to cat chunk clone col2im concat constant_pad_nd contiguous
    copy detach diagonal dropout expand expand_as feature_dropout flatten flip gather
    getitem im2col index index_put index_select mH mT masked_select matrix_H moveaxis movedim narrow numpy_T pad
    permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as
    resolve_conj roll rot90 scatter select select_scatter slice slice_scatter split
    split_with_sizes squeeze stack swapaxes swapdims t tensor_split tile to transpose type_as unbind
    unflatten unfold unsqueeze view view_as view_as_complex view_as_real
""")
"""Move values between places without mixing channels."""

SCALES = _words("""
    _native_batch_norm_legit _native_batch_norm_legit_no_training abs adaptive_avg_pool2d
    adaptive_max_pool2d add addcmul amax amin avg_pool1d avg_pool2d batch_norm clamp clamp_max
    clamp_min cummax cumsum div frobenius_norm group_norm instance_norm l1_norm layer_norm lerp
    linalg_vector_norm masked_fill max max_pool1d max_pool2d maximum mean min minimum mul multiply
    nan_to_num native_layer_norm neg norm pow reciprocal rms_norm rsqrt rsub sqrt square std
    sub sum true_divide upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var
    var_mean where
""")
"""Scale, shift, normalise or pool: a projection is still recognisable behind them."""

ACTIVATIONS = _words("""
    celu elu erf exp gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu
    log_sigmoid logsigmoid mish prelu relu relu6 rrelu selu sigmoid silu softplus softsign
    tanh threshold
""")
"""Elementwise nonlinearities."""

PRODUCTS = _words("""
    baddbmm bmm einsum matmul mm
""")
"""Products of two tensors; those with a weight on one side are linear reads."""

FACTORIES = _words("""
    empty_like full_like new_empty new_full new_ones new_zeros ones_like zeros_like
""")
"""Make a tensor of a given one's shape; its values do not matter."""

ADDITIONS = _words("""
    add cat concat lerp rsub stack sub where
""")
"""Join values as summands or neighbours, and so may close a residual branch."""

SUMS = _words("""
    add sub
""")
"""Add values of one shape."""

MODULATIONS = _words("""
    div mul multiply true_divide
""")
"""Multiply values: rotary tables, gates, scales."""

SHAPE_FROM_SECOND = _words("""
    expand_as reshape_as type_as view_as
""")
"""Take the shape or dtype of their second operand; its values do not matter."""

ATTENTIONS = _words("""
    _safe_softmax _softmax scaled_dot_product_attention softmax
""")
"""Compute attention, or are the middle of it."""

CONVOLUTIONS = _words("""
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
""")
"""Mix channels and neighbours; those of kernel 1 are linear reads."""

NORMS = _words("""
    batch_norm group_norm layer_norm native_layer_norm rms_norm
""")
"""Normalise over channels or tokens."""
