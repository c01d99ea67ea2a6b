"""What `downmix report` gathers, and the page that it makes of it."""
