"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as timm builds it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from bvit.image.patches import check_patch_size
from bvit.models import backends
from bvit.models.attention import IMPLEMENTATIONS
from bvit.models.encoder import ACTIVATIONS, AttentionPool, Block, size_bias, truncated_normal
from bvit.tokens.policy import Policy, Tokens, ViTShape, with_prefix

CHANNELS = 3

POOLS = ("cls", "mean", "attention")


class PatchEmbed(nn.Module):
    """One linear map of each patch's pixels, the same for all patches.

    The kernel has the shape of the equivalent strided convolution, [p, p, c, width], so published
    weights fit as they are; it is applied as a matrix, so that patches can be gathered first.
    """

    width: int
    patch_size: int
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tiles: Float[Array, "n t pixels"]) -> Float[Array, "n t width"]:
        """Embeds tiles of p·p·c pixels, flattened in the order (row, column, channel)."""
        shape = (self.patch_size, self.patch_size, CHANNELS, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        tiles, kernel = nn.dtypes.promote_dtype(tiles, kernel, dtype=self.dtype)
        by_pixel = (((2,), (0,)), ((), ()))
        x = backends.dot_general(tiles, kernel.reshape(-1, self.width), by_pixel)
        if not self.use_bias:
            return x
        return x + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)


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
        the patch tokens, normed after averaging (timm's `fc_norm`); there is no class token then. A
        merged token counts as often as the patches it stands for, so that the mean stays one over
        the area of the image, whatever the plan. "attention": what a learned query finds in the
        normed tokens, as in SigLIP (timm's `attn_pool`); there is no class token either.
      distilled: a second token before the patches, DeiT's distillation token, with a head of its
        own; the logits are the mean of both heads' (Touvron et al. 2021, arXiv:2012.12877, section
        4). Needs pool="cls".
      registers: tokens before the patches that nothing reads (Darcet et al. 2024,
        arXiv:2309.16588). With them only patches have a position embedding.
      pre_norm: norm the tokens before the first block, and embed patches without a bias, as CLIP.
      activation: of the MLPs: "gelu"; "gelu_tanh", its approximation by tanh; "quick_gelu", by a
        sigmoid, as in OpenAI's CLIP.
      norm_epsilon: of the layer norms.
      dropout: rate on the embeddings and inside and after the branches, when training.
      stochastic_depth: rate at which the last block's branches are skipped, when training; it grows
        linearly from 0 at the first block (Huang et al. 2016, arXiv:1603.09382).
      dtype: what the blocks compute in; the final norm and the head always use float32.
      attention: "plain": XLA's; "cudnn": cuDNN's fused kernel, for half precision on NVIDIA GPUs;
        "auto": cuDNN's where it can be used.
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
    distilled: bool = False
    registers: int = 0
    pre_norm: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    remat: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_patch_size(self._image_shape, self.patch_size)
        if self.width % self.num_heads:
            below = self.width - self.width % self.num_heads
            fits = [str(one) for one in (below, below + self.num_heads) if one]
            raise ValueError(
                f"width must be a multiple of num_heads: got width={self.width}, "
                f"num_heads={self.num_heads}; use width={' or '.join(fits)}."
            )
        for name, allowed in (
            ("pool", POOLS),
            ("attention", IMPLEMENTATIONS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}: got {getattr(self, name)!r}."
                )
        if self.distilled and self.pool != "cls":
            raise ValueError(
                f"distilled adds a token beside the class token: got pool={self.pool!r}; use "
                "pool='cls'."
            )
        if self.registers < 0:
            raise ValueError(f"registers must be a number of tokens: got {self.registers}.")
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

    @property
    def shape(self) -> ViTShape:
        """What token policies have to know."""
        return ViTShape(
            self.grid,
            self.patch_size,
            self.depth,
            self.width,
            self.mlp_ratio,
            sum(self._prefix.values()),
            self.pool == "cls",
        )

    @property
    def _prefix(self) -> dict[str, int]:
        """The tokens before those of the patches, by the name of their parameter."""
        return {
            "cls_token": int(self.pool == "cls"),
            "dist_token": int(self.distilled),
            "reg_token": self.registers,
        }

    @property
    def positioned(self) -> int:
        """How many of the tokens before those of the patches have a position embedding."""
        return 0 if self.registers else self.shape.prefix

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w 3"],
        train: bool = False,
        policy: Policy = Policy(),  # noqa: B008 (frozen)
        plan: Any = None,
    ) -> Float[Array, "n num_classes"]:
        """Classifies images.

        `bvit.classify` does all of it from pixels; this is for those who normalise by themselves.

        Args:
          images: [n, h, w, 3], normalised, of the model's image_size.
          train: whether to drop units and branches; needs a "dropout" key when a rate is above 0.
          policy: which tokens are computed, of `bvit.tokens.parse`; by default all. Static.
          plan: of `policy.plan`, from the pixels of these images; None if the policy needs none.

        Returns:
          float32 logits. With mutable=["intermediates"], also the number of the token that shows
          each patch, "where": int [n, patches], -1 for a patch that no token shows.

        Raises:
          ValueError: the images, the policy or the plan do not fit the model.
        """
        self._check_images(images)
        self._check_plan(policy, plan, len(images))
        policy.counts(self.shape)  # raises for a budget that can't be
        tokens = self._embed(images, policy, plan)
        tokens = tokens.replace(x=nn.Dropout(self.dropout, deterministic=not train)(tokens.x))
        if self.pre_norm:
            norm = nn.LayerNorm(self.norm_epsilon, self.dtype, name="norm_pre")
            tokens = tokens.replace(x=norm(tokens.x))
        # Argument 3 is `train`, which is static (0 is the module).
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for i in range(self.depth):
            tokens = block(
                number=i + 1,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
                dropout=self.dropout,
                drop_path=self.stochastic_depth * i / max(self.depth - 1, 1),
                dtype=self.dtype,
                attention=self.attention,
                policy=policy,
                vit=self.shape,
                name=f"blocks_{i}",
            )(tokens, plan, train)
        if not self.is_initializing():
            every = jnp.broadcast_to(
                jnp.arange(self.shape.patches), (len(images), self.shape.patches)
            )
            self.sow("intermediates", "where", every if tokens.where is None else tokens.where)
        return self._classify(tokens)

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

    def _check_plan(self, policy: Policy, plan: Any, count: int) -> None:
        if policy.needs_plan != (plan is not None):
            raise ValueError(
                f"policy {policy.label} chooses tokens from pixels: pass plan=policy.plan(pixels, "
                "model.shape), with pixels in [0, 1], or use bvit.classify."
                if policy.needs_plan
                else "this policy needs no plan: pass policy=… with the plan that it drew."
            )
        batch = {leaf.shape[0] for leaf in jax.tree.leaves(plan)}
        if batch - {count}:
            raise ValueError(
                f"the plan must be one for these {count} images, in one batch axis: got one for "
                f"{min(batch)}; draw it with policy.plan(pixels, model.shape)."
            )

    def _embed(self, images: Float[Array, "n h w 3"], policy: Policy, plan: Any) -> Tokens:
        """The encoder's tokens: the class token, where there is one, and those of the patches."""
        prefix = self.shape.prefix
        embed = PatchEmbed(
            self.width, self.patch_size, not self.pre_norm, self.dtype, name="patch_embed"
        )
        count = self.positioned + self.shape.patches
        positions = self.param("pos_embed", truncated_normal, (1, count, self.width))
        own, positions = positions[:, : self.positioned], positions[:, self.positioned :]
        positions = positions.astype(self.dtype)
        tokens = policy.embed(
            images, positions.reshape(1, *self.grid, -1), embed, plan=plan, vit=self.shape
        )
        if not prefix:
            return tokens
        first = jnp.concatenate(
            [
                self.param(name, truncated_normal, (1, tokens_of_it, self.width))
                for name, tokens_of_it in self._prefix.items()
                if tokens_of_it
            ],
            axis=1,
        )
        first = (first + own if self.positioned else first).astype(self.dtype)
        first = jnp.broadcast_to(first, (len(images), prefix, self.width))
        size = None if tokens.size is None else with_prefix(tokens.size, prefix)
        return tokens.replace(x=jnp.concatenate([first, tokens.x], axis=1), size=size)

    def _classify(self, tokens: Tokens) -> Float[Array, "n num_classes"]:
        """Pools the tokens, norms, and applies the head, in float32."""
        norm = nn.LayerNorm(self.norm_epsilon, name="norm")
        head = functools.partial(nn.Dense, self.num_classes, kernel_init=truncated_normal)
        x, prefix = tokens.x.astype(jnp.float32), self.shape.prefix
        patches = Tokens(
            x[:, prefix:],
            None if tokens.size is None else tokens.size[:, prefix:],
            None if tokens.mask is None else tokens.mask[:, prefix:],
        )
        if self.pool == "attention":
            hidden = round(self.width * self.mlp_ratio)
            pool = AttentionPool(
                self.num_heads, hidden, self.activation, self.norm_epsilon, name="attn_pool"
            )
            return head(name="head")(pool(norm(patches.x), patches.mask, size_bias(patches)))
        if self.pool == "mean":
            return head(name="head")(norm(_mean(patches)))
        pooled = norm(x[:, : 1 + self.distilled])
        logits = head(name="head")(pooled[:, 0])
        if self.distilled:
            logits = (logits + head(name="head_dist")(pooled[:, 1])) / 2
        return logits


def _mean(patches: Tokens) -> Float[Array, "n width"]:
    """The mean token of each image, over its area."""
    if patches.size is None:
        return patches.x.mean(axis=1)
    total = (patches.size[..., None] * patches.x).sum(axis=1)
    return total / patches.size.sum(axis=1, keepdims=True)
