"""The stage that changes the lesions of existing images and measures each change, and masks of generated images."""
