"""What browsers run: plain files, served as they are."""
