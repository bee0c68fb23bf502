"""Makes derm-tiny, the base model that ships, from nothing but captioned phantoms."""
