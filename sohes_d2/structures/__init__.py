"""Ground floor: masks, forests and images, shared by every other part. No torch modules here."""
