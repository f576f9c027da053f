"""The encoder's layer: multi-head attention and an MLP (Vaswani et al. 2017), normed beforehand."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from bvit.models import backends
from bvit.models.attention import attend
from bvit.tokens.policy import Attention as Attended
from bvit.tokens.policy import Policy, Tokens, ViTShape

INIT_STDDEV = 0.02  # as timm and Google's vision_transformer draw

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016, section 2
}

truncated_normal = nn.initializers.truncated_normal(INIT_STDDEV)


class Attention(nn.Module):
    """Multi-head self-attention; unfused where its weights are to be kept."""

    num_heads: int
    dtype: DTypeLike
    keep_weights: bool
    implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t width"],
        mask: Bool[Array, "n t"] | None,
        bias: Float[Array, "n t"] | None,
    ) -> tuple[Float[Array, "n t width"], Attended]:
        """Mixes the tokens of each image.

        Args:
          x: the tokens.
          mask: False for tokens that are padding, and not attended to.
          bias: added to the logits of attending to each token.

        Returns:
          The mixed tokens; and the keys and, if kept, the weights, for the policy.
        """
        width = x.shape[-1]
        # The axes 3 (query, key, value) × heads × head_dim stay apart in the kernel, so that heads
        # can be sharded; flattened, it is timm's qkv weight, transposed.
        qkv = nn.DenseGeneral(
            (3, self.num_heads, width // self.num_heads),
            dtype=self.dtype,
            kernel_init=truncated_normal,
            dot_general=backends.dot_general,
            name="qkv",
        )(x)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        weights = None
        if self.keep_weights:
            mixed, weights = backends.attention_with_weights(
                query, key, value, mask=mask, bias=bias
            )
        else:
            mixed = attend(
                query, key, value, mask=mask, bias=bias, implementation=self.implementation
            )
        mixed = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=truncated_normal,
            dot_general=backends.dot_general,
            name="proj",
        )(mixed)
        return mixed, Attended(key, weights)


class ActivatedDense(nn.Module):
    """A dense layer and an activation; the parameters are those of `flax.linen.Dense`."""

    features: int
    activation: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t features"]:
        """Transforms each token by itself."""
        kernel = self.param("kernel", truncated_normal, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        arrays = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        activate = ACTIVATIONS[self.activation]
        return backends.by_token(lambda x, kernel, bias: activate(x @ kernel + bias), *arrays)


class Mlp(nn.Module):
    """Two dense layers with an activation between them."""

    hidden: int
    activation: str
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t width"], train: bool) -> Float[Array, "n t width"]:
        """Transforms each token by itself."""
        hidden = ActivatedDense(self.hidden, self.activation, self.dtype, name="fc1")(x)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return nn.Dense(
            x.shape[-1],
            dtype=self.dtype,
            kernel_init=truncated_normal,
            dot_general=backends.dot_general,
            name="fc2",
        )(hidden)


def size_bias(tokens: Tokens) -> Float[Array, "n t"] | None:
    """What attention adds to the logits of each token, so that it counts as all its patches."""
    # Padding has size 0 and is masked: its bias has only to be finite.
    return None if tokens.size is None else jnp.log(jnp.maximum(tokens.size, 1))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each added to its input.

    Between the two, the policy may reduce the tokens. Attention is in proportion to the patches
    that a token stands for, by log(size) added to its logits (Bolya et al. 2023, arXiv:2210.09461,
    equation 1).

    Attributes:
      number: of the block, counted from 1.
      num_heads: attention heads.
      mlp_ratio: hidden features of the MLP, as a multiple of the width.
      activation: of the MLP, a key of `ACTIVATIONS`.
      norm_epsilon: of the layer norms.
      dropout: rate after each branch and inside the MLP.
      drop_path: probability that an image skips a branch (Huang et al. 2016).
      dtype: what is computed in.
      attention: its implementation, of `bvit.models.attention.attend`.
      policy: what reduces the tokens.
      vit: the shape of the whole encoder, for the policy.
    """

    number: int
    num_heads: int
    mlp_ratio: float
    activation: str
    norm_epsilon: float
    dropout: float
    drop_path: float
    dtype: DTypeLike
    attention: str
    policy: Policy
    vit: ViTShape

    @nn.compact
    def __call__(self, tokens: Tokens, plan: Any, train: bool) -> Tokens:
        """One layer of the encoder.

        Args:
          tokens: of the layer before.
          plan: of the policy.
          train: whether to drop units and branches. Static.
        """

        def dropped(branch: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)(
                branch
            )

        layer_norm = functools.partial(nn.LayerNorm, self.norm_epsilon, self.dtype)
        keep_weights = self.policy.reads_weights(self.number, self.vit)
        branch, attention = Attention(
            self.num_heads, self.dtype, keep_weights, self.attention, name="attn"
        )(layer_norm(name="norm1")(tokens.x), tokens.mask, size_bias(tokens))
        tokens = tokens.replace(x=tokens.x + dropped(branch))
        tokens = self.policy.reduce(tokens, attention, self.number, plan=plan, vit=self.vit)
        hidden = round(tokens.x.shape[-1] * self.mlp_ratio)
        branch = Mlp(hidden, self.activation, self.dropout, self.dtype, name="mlp")(
            layer_norm(name="norm2")(tokens.x), train
        )
        return tokens.replace(x=tokens.x + dropped(branch))


class AttentionPool(nn.Module):
    """Pools the tokens of each image by one learned query (Zhai et al. 2022, arXiv:2106.04560).

    Attributes:
      num_heads: attention heads.
      hidden: units of the MLP.
      activation: of the MLP, a key of `ACTIVATIONS`.
      norm_epsilon: of the layer norm.
    """

    num_heads: int
    hidden: int
    activation: str
    norm_epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t width"],
        mask: Bool[Array, "n t"] | None,
        bias: Float[Array, "n t"] | None,
    ) -> Float[Array, "n width"]:
        """Pools the tokens, float32; mask and bias are those of `Attention`."""
        n, _, width = x.shape
        latent = self.param("latent", truncated_normal, (1, 1, width))
        dense = functools.partial(nn.Dense, kernel_init=truncated_normal)
        by_head = width // self.num_heads
        query = dense(width, name="q")(latent).reshape(1, 1, self.num_heads, by_head)
        both = dense(2 * width, name="kv")(x).reshape(*x.shape[:2], 2, self.num_heads, by_head)
        key, value = jnp.moveaxis(both, 2, 0)
        query = jnp.broadcast_to(query, (n, *query.shape[1:]))
        mixed = backends.attention(query, key, value, mask=mask, bias=bias)
        pooled = dense(width, name="proj")(mixed.reshape(n, 1, width))
        normed = nn.LayerNorm(self.norm_epsilon, name="norm")(pooled)
        mlp = Mlp(self.hidden, self.activation, 0.0, jnp.float32, name="mlp")
        return (pooled + mlp(normed, False))[:, 0]
