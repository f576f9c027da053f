"""What a ViT spends its compute on: policies, one file each."""
