"""dermjax: labelled dermoscopy images in, a better skin-lesion classifier and the evidence for it out."""
