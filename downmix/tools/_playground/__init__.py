"""The page of `downmix playground`: what it shows, and how it is served."""
