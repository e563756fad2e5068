"""What is read off a study: claims, tables and figures."""
