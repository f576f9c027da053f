"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as timm builds it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from bvit.models import tokens

CHANNELS = 3

# The values of the published models, which timm and Google's vision_transformer share.
NORM_EPSILON = 1e-6
INIT_STDDEV = 0.02

POOLS = ("cls", "mean")

_LayerNorm = functools.partial(nn.LayerNorm, epsilon=NORM_EPSILON)
_truncated_normal = nn.initializers.truncated_normal(INIT_STDDEV)


class PatchEmbed(nn.Module):
    """One linear map of each patch's pixels, the same for all patches.

    The kernel has the shape of the equivalent strided convolution, [p, p, c, width], so published
    weights fit as they are; it is applied as a matrix, so that patches can be gathered first.
    """

    width: int
    patch_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tiles: Float[Array, "n t pixels"]) -> Float[Array, "n t width"]:
        """Embeds tiles of p·p·c pixels, flattened in the order (row, column, channel)."""
        shape = (self.patch_size, self.patch_size, CHANNELS, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        tiles, kernel, bias = nn.dtypes.promote_dtype(tiles, kernel, bias, dtype=self.dtype)
        return tiles @ kernel.reshape(-1, self.width) + bias


class Attention(nn.Module):
    """Multi-head self-attention; tokens that `mask` calls padding are not attended to."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "n t width"], mask: Bool[Array, "n t"] | None
    ) -> Float[Array, "n t width"]:
        """Mixes the tokens of each image."""
        width = x.shape[-1]
        # The axes 3 (query, key, value) × heads × head_dim stay apart in the kernel, so that heads
        # can be sharded; flattened, it is timm's qkv weight, transposed.
        qkv = nn.DenseGeneral(
            (3, self.num_heads, width // self.num_heads),
            dtype=self.dtype,
            kernel_init=_truncated_normal,
            name="qkv",
        )(x)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        # [n, heads, queries, keys], broadcast over heads and queries.
        attend_to = None if mask is None else mask[:, None, None, :]
        x = jax.nn.dot_product_attention(query, key, value, mask=attend_to)
        return nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=_truncated_normal, name="proj"
        )(x)


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t width"], train: bool) -> Float[Array, "n t width"]:
        """Transforms each token by itself."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_truncated_normal)
        hidden = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return dense(x.shape[-1], name="fc2")(hidden)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each added to what came in.

    `drop_path` is the probability that an image skips a branch (Huang et al. 2016).
    """

    num_heads: int
    mlp_ratio: float
    dropout: float
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "n t width"], mask: Bool[Array, "n t"] | None, train: bool
    ) -> Float[Array, "n t width"]:
        """One layer of the encoder."""

        def add(branch: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            return x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)(
                branch
            )

        normed = _LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = add(Attention(self.num_heads, self.dtype, name="attn")(normed, mask))
        normed = _LayerNorm(dtype=self.dtype, name="norm2")(x)
        hidden = round(x.shape[-1] * self.mlp_ratio)
        return add(Mlp(hidden, self.dropout, self.dtype, name="mlp")(normed, train))


class VisionTransformer(nn.Module):
    """A ViT classifier: normalised images [n, h, w, 3] to float32 logits [n, num_classes].

    All fields are static. Parameters are float32 whatever `dtype` is, and named as in timm:
    `patch_embed`, `cls_token`, `pos_embed`, `blocks_0` … with `norm1`, `attn/qkv`, `attn/proj`,
    `norm2`, `mlp/fc1`, `mlp/fc2`, then `norm` and `head`.

    Attributes:
      num_classes: logits for each image.
      image_size: pixels that the position embedding is made for: one number, or (height, width).
      patch_size: side of a patch in pixels; must divide the image.
      width: features of a token; must be a multiple of num_heads.
      depth: number of blocks.
      num_heads: attention heads in a block.
      mlp_ratio: hidden features of the MLP, as a multiple of width.
      pool: what the head reads. "cls": the class token, after the final norm. "mean": the mean of
        the patch tokens, normed after averaging (timm's `fc_norm`); there is no class token then.
      dropout: rate on the embeddings and inside and after the branches, when training.
      stochastic_depth: rate at which the last block's branches are skipped, when training; it grows
        linearly from 0 at the first block (Huang et al. 2016, arXiv:1603.09382).
      dtype: what the blocks compute in; the final norm and the head always use float32.
      remat: recompute each block's activations in the backward pass, to save memory.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    pool: str = "cls"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self):
        """Raises ValueError for sizes that do not fit together, before anything is compiled."""
        super().__post_init__()
        tokens.check_patch_size(self._image_shape, self.patch_size)
        if self.width % self.num_heads:
            below = self.width - self.width % self.num_heads
            raise ValueError(
                f"width must be a multiple of num_heads: got width={self.width}, "
                f"num_heads={self.num_heads}; use width={below or self.num_heads} "
                f"or {below + self.num_heads}."
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}: got {self.pool!r}.")
        for name in ("dropout", "stochastic_depth"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be a rate in [0, 1): got {rate}.")

    @property
    def _image_shape(self) -> tuple[int, int]:
        height, width = np.broadcast_to(self.image_size, 2)
        return int(height), int(width)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self._image_shape
        return height // self.patch_size, width // self.patch_size

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n num_classes"]:
        """Classifies images.

        Args:
          images: [n, h, w, 3], normalised, of the model's image_size.
          train: whether to drop units and branches; needs a "dropout" key when a rate is above 0.

        Returns:
          float32 logits.

        Raises:
          ValueError: the images are not what the model was made for.
        """
        self._check_images(images)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(
            tokens.patchify(images, self.patch_size)
        )
        x = self._add_positions(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = self._encode(x, None, train)
        return self._classify(x)

    def _check_images(self, images: Array) -> None:
        height, width = self._image_shape
        if images.ndim != 4 or images.shape[-1] != CHANNELS:
            raise ValueError(
                f"images must be [n, height, width, {CHANNELS}]: got shape {images.shape}; "
                "repeat a grey channel with jnp.repeat(images, 3, axis=-1), "
                "and give a single image its batch axis with image[None]."
            )
        if images.shape[1:3] != (height, width):
            got_height, got_width = images.shape[1:3]
            raise ValueError(
                f"images must have the size of the position embedding, {height}×{width}: got "
                f"{got_height}×{got_width}; resize the images, or create the model with "
                f"image_size=({got_height}, {got_width})."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating point and normalised: got {images.dtype}; convert with "
                "bvit.image.pixels.to_float, then bvit.image.pixels.normalize."
            )

    def _add_positions(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        """Adds the position embedding, and puts the class token first where there is one."""
        prefix = int(self.pool == "cls")
        count = prefix + self.grid[0] * self.grid[1]
        positions = self.param("pos_embed", _truncated_normal, (1, count, self.width))
        positions = positions.astype(self.dtype)
        x = x + positions[:, prefix:]
        if not prefix:
            return x
        token = self.param("cls_token", _truncated_normal, (1, 1, self.width))
        token = token.astype(self.dtype) + positions[:, :1]
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)

    def _encode(
        self, x: Float[Array, "n t width"], mask: Bool[Array, "n t"] | None, train: bool
    ) -> Float[Array, "n t width"]:
        """Runs the blocks."""
        # Argument 3 is `train`, which is static (0 is the module).
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for i in range(self.depth):
            drop_path = self.stochastic_depth * i / max(self.depth - 1, 1)
            x = block(
                self.num_heads,
                self.mlp_ratio,
                self.dropout,
                drop_path,
                self.dtype,
                name=f"blocks_{i}",
            )(x, mask, train)
        return x

    def _classify(self, x: Float[Array, "n t width"]) -> Float[Array, "n num_classes"]:
        """Pools the tokens, norms, and applies the head, in float32."""
        x = x.astype(jnp.float32)
        pooled = x[:, 0] if self.pool == "cls" else x.mean(axis=1)
        pooled = _LayerNorm(name="norm")(pooled)
        return nn.Dense(self.num_classes, kernel_init=_truncated_normal, name="head")(pooled)
