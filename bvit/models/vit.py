"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as timm builds it."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Shaped

from bvit.image.patches import check_patch_size, patchify
from bvit.models.encoder import Block, by_token, layer_norm, truncated_normal
from bvit.tokens import clusters, pyramid
from bvit.tokens import plans as tokens
from bvit.tokens.plans import TokenPlan

CHANNELS = 3

POOLS = ("cls", "mean")


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
        embedded = by_token(tiles) @ kernel.reshape(-1, self.width) + bias
        return embedded.reshape(*tiles.shape[:-1], self.width)


class VisionTransformer(nn.Module):
    """A ViT classifier: normalised images [n, h, w, 3] to float32 logits [n, num_classes].

    All fields are static. Parameters are float32 whatever `dtype` is, and named as in timm:
    `patch_embed`, `cls_token`, `pos_embed`, `blocks_0` … with `norm1`, `attn/qkv`, `attn/proj`,
    `norm2`, `mlp/fc1`, `mlp/fc2`, then `norm` and `head`; merge_levels adds `scale_embed`, and
    merge_detail `detail_kernel`.

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
        the area of the image, whatever the plan.
      dropout: rate on the embeddings and inside and after the branches, when training.
      stochastic_depth: rate at which the last block's branches are skipped, when training; it grows
        linearly from 0 at the first block (Huang et al. 2016, arXiv:1603.09382).
      dtype: what the blocks compute in; the final norm and the head always use float32.
      remat: recompute each block's activations in the backward pass, to save memory.
      merge_levels: levels of merged tokens that get a learned scale embedding; it starts at zero,
        where it changes nothing. Plans may merge without it, or further.
      merge_detail: also give each merged token a projection of the embeddings of the four tiles
        one level below that it stands for, so that their detail is not lost; it too starts at zero
        (after APT: Choudhury et al. 2025, arXiv:2510.18091). Embeds every patch.
      plan_after: blocks that still compute every patch, before a plan takes its tokens from what
        they made of them: a merged token is then the mean of its patches' tokens, which know their
        surroundings in full. Of what a plan saves, a share of plan_after / depth is lost.
      size_bias: attend to a token in proportion to the patches it stands for, by log(size) added to
        the attention's logits (Bolya et al. 2023, arXiv:2210.09461, equation 1).
      tome_r: tokens that each block merges into others by the similarity of their keys, whatever
        the pixels are (`bvit.tokens.tome`, the same paper); its attention has the size bias. Needs
        the full set of tokens, so no plan. 0 merges none.
      cluster_to: patch tokens that are left after the first `plan_after` blocks, where neighbours
        that have become alike are joined into their mean (`bvit.tokens.clusters`); attention has
        the size bias from there on. It needs no plan, and takes none. 0 joins none. Which cluster
        each patch went into is kept as "cluster" where `apply` asks for mutable "intermediates".
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
    merge_levels: int = 0
    merge_detail: bool = False
    plan_after: int = 0
    size_bias: bool = False
    tome_r: int = 0
    cluster_to: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_patch_size(self._image_shape, self.patch_size)
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
        if self.tome_r < 0:
            raise ValueError(f"tome_r must be a number of tokens, 0 or more: got {self.tome_r}.")
        if self.cluster_to:
            clusters.check_count(self.grid, self.cluster_to)
            if self.tome_r:
                raise ValueError(
                    "cluster_to and tome_r both merge tokens between the blocks: got cluster_to="
                    f"{self.cluster_to}, tome_r={self.tome_r}; set one of them to 0."
                )
        if not 0 <= self.plan_after < max(self.depth, 1):
            raise ValueError(
                "plan_after must leave blocks for the plan's tokens, so be 0 to depth - 1 = "
                f"{self.depth - 1}: got {self.plan_after}."
            )
        if self.merge_detail and not self.merge_levels:
            raise ValueError(
                "merge_detail needs merge_levels, the levels it is learned for: got "
                "merge_levels=0; use merge_levels=1, or 2 for policy 'merge2'."
            )

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
        self, images: Float[Array, "n h w 3"], train: bool = False, plan: TokenPlan | None = None
    ) -> Float[Array, "n num_classes"]:
        """Classifies images.

        Args:
          images: [n, h, w, 3], normalised, of the model's image_size.
          train: whether to drop units and branches; needs a "dropout" key when a rate is above 0.
          plan: the tokens to compute for each image, of `bvit.tokens.plans.plan`; None is all.

        Returns:
          float32 logits.

        Raises:
          ValueError: the images or the plan are not what the model was made for.
        """
        self._check_images(images)
        if plan is not None:
            self._check_plan(plan, len(images))
        merging = self._merging()
        x = self._embed(images, None if self.plan_after else plan, merging)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x, size = self._encode(x, plan, merging, train)
        return self._classify(x, size)

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

    def _check_plan(self, plan: TokenPlan, count: int) -> None:
        for name, value in (("tome_r", self.tome_r), ("cluster_to", self.cluster_to)):
            if value:
                raise ValueError(
                    f"{name}={value} merges what it is given by itself, and takes no plan; leave "
                    f"the plan out, or create the model with {name}=0."
                )
        made_for = (plan.grid, plan.patch_size, plan.tile.shape[:-1])
        if made_for != (self.grid, self.patch_size, (count,)):
            raise ValueError(
                f"the plan must be for {count} images of {self.grid[0]}×{self.grid[1]} patches of "
                f"{self.patch_size} pixels, in one batch axis: got one for batch shape "
                f"{plan.tile.shape[:-1]}, {plan.grid[0]}×{plan.grid[1]} patches of "
                f"{plan.patch_size} pixels; draw it from these images, before normalisation, with "
                f"bvit.tokens.plans.plan(images, patch_size={self.patch_size}, …)."
            )

    @property
    def _prefix(self) -> int:
        """Tokens before the patches'."""
        return int(self.pool == "cls")

    def _merging(self) -> tuple[Array | None, Array | None]:
        """What is learned for merged tokens, whether or not this call has any: scale and detail."""
        scale = detail = None
        if self.merge_levels:
            scale = self.param(
                "scale_embed", nn.initializers.zeros, (self.merge_levels, self.width)
            )
        if self.merge_detail:
            shape = (self.merge_levels, 4 * self.width, self.width)
            detail = self.param("detail_kernel", nn.initializers.zeros, shape)
        return scale, detail

    def _embed(
        self,
        images: Float[Array, "n h w 3"],
        plan: TokenPlan | None,
        merging: tuple[Array | None, Array | None],
    ) -> Float[Array, "n t width"]:
        """The encoder's tokens: the class token, where there is one, and those of the patches."""
        embed = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")
        shape = (1, self._prefix + self.grid[0] * self.grid[1], self.width)
        positions = self.param("pos_embed", truncated_normal, shape)
        own, positions = positions[:, : self._prefix], positions[:, self._prefix :]
        if plan is None:
            x = embed(patchify(images, self.patch_size)) + positions.astype(self.dtype)
        else:
            grid = positions.reshape(1, *self.grid, self.width)
            positions = tokens.gather(tokens.tiles(grid, plan), plan).astype(self.dtype)
            x = _merge(tokens.tiles(images, plan), plan, merging, embed) + positions
        if not self._prefix:
            return x
        token = self.param("cls_token", truncated_normal, (1, 1, self.width))
        token = jnp.broadcast_to((token + own).astype(self.dtype), (len(x), 1, self.width))
        return jnp.concatenate([token, x], axis=1)

    def _encode(
        self,
        x: Float[Array, "n t width"],
        plan: TokenPlan | None,
        merging: tuple[Array | None, Array | None],
        train: bool,
    ) -> tuple[Float[Array, "n t2 width"], Float[Array, "n t2"] | None]:
        """Runs the blocks; the plan's tokens are taken before the first, or after `plan_after`."""
        # Argument 4 is `train`, which is static (0 is the module).
        block = nn.remat(Block, static_argnums=(4,)) if self.remat else Block
        size, mask = jnp.ones(x.shape[:2]) if self.tome_r else None, None
        for i in range(self.depth):
            if self.cluster_to and i == self.plan_after:
                x, size = self._join(x)
            if plan is not None and i == self.plan_after:
                x = self._follow(x, plan, merging) if i else x
                size = self._with_class_token(plan.size, 1)
                mask = None if plan.mask is None else self._with_class_token(plan.mask, True)
            x, size = block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                drop_path=self.stochastic_depth * i / max(self.depth - 1, 1),
                dtype=self.dtype,
                size_bias=self.size_bias or self.tome_r > 0 or self.cluster_to > 0,
                tome_r=self.tome_r,
                prefix=self._prefix,
                name=f"blocks_{i}",
            )(x, size, mask, train)
        return x, size

    def _follow(
        self,
        x: Float[Array, "n t width"],
        plan: TokenPlan,
        merging: tuple[Array | None, Array | None],
    ) -> Float[Array, "n t2 width"]:
        """Takes the plan's tokens from those of all patches; the class token stays."""
        grid = x[:, self._prefix :].reshape(len(x), *self.grid, self.width)
        taken = _merge(tokens.tiles(grid, plan), plan, merging)
        return jnp.concatenate([x[:, : self._prefix], taken], axis=1)

    def _join(
        self, x: Float[Array, "n t width"]
    ) -> tuple[Float[Array, "n t2 width"], Float[Array, "n t2"]]:
        """Joins tokens that are alike; the class token stays."""
        own, patches = x[:, : self._prefix], x[:, self._prefix :]
        cluster = clusters.assign(patches, grid=self.grid, count=self.cluster_to)
        self.sow("intermediates", "cluster", cluster)  # for those who want to see it
        ones = jnp.ones(patches.shape[:2])
        patches, size = clusters.merge(patches, ones, cluster, self.cluster_to)
        return jnp.concatenate([own, patches], axis=1), self._with_class_token(size, 1)

    def _with_class_token(
        self, values: Shaped[Array, "n t"], own: float | bool
    ) -> Shaped[Array, "n t+prefix"]:
        """Puts the class token's value before those of the patch tokens."""
        return jnp.pad(values, ((0, 0), (self._prefix, 0)), constant_values=own)

    def _classify(
        self, x: Float[Array, "n t width"], size: Float[Array, "n t"] | None
    ) -> Float[Array, "n num_classes"]:
        """Pools the tokens, norms, and applies the head, in float32."""
        x = x.astype(jnp.float32)
        if self.pool == "cls":
            pooled = x[:, 0]
        elif size is None:
            pooled = x.mean(axis=1)
        else:
            pooled = (size[..., None] * x).sum(axis=1) / size.sum(axis=1, keepdims=True)
        pooled = layer_norm(name="norm")(pooled)
        return nn.Dense(self.num_classes, kernel_init=truncated_normal, name="head")(pooled)


def _merge(
    tiles: Float[Array, "n tiles values"],
    plan: TokenPlan,
    merging: tuple[Array | None, Array | None],
    embed: Callable[[Array], Array] = lambda tiles: tiles,
) -> Float[Array, "n t width"]:
    """The tokens that a plan names of tiles, embedded first, with the scale and detail learned."""
    scale, detail = merging
    if detail is None or not plan.levels:
        x = embed(tokens.gather(tiles, plan))
    else:
        # The finer tiles are no tokens of their own, so every tile is embedded.
        tiles = embed(tiles)
        x = tokens.gather(tiles + _details(tiles, plan, detail.astype(tiles.dtype)), plan)
    if scale is None:
        return x
    # A level that has no embedding matches none.
    levels = plan.level[..., None] == 1 + jnp.arange(len(scale))
    return x + (levels.astype(scale.dtype) @ scale).astype(x.dtype)


def _details(
    embedded: Float[Array, "n tiles width"],
    plan: TokenPlan,
    kernel: Float[Array, "levels four_widths width"],
) -> Float[Array, "n tiles width"]:
    """For each tile above level 0, the projected embeddings of the four tiles below it; else 0."""
    grids = pyramid.level_grids(plan.grid, plan.levels)
    ends = pyramid.level_starts(plan.grid, plan.levels)[1:-1]
    levels = jnp.split(embedded, ends, axis=1)
    details = [jnp.zeros_like(level) for level in levels]
    for i in range(min(plan.levels, len(kernel))):
        finer = levels[i].reshape(len(embedded), *grids[i], -1)
        rows, columns = grids[i + 1]
        details[i + 1] = patchify(finer[:, : 2 * rows, : 2 * columns], 2) @ kernel[i]
    return jnp.concatenate(details, axis=1)
