"""How to bring one's own: each module is a whole, small example, and is tested."""
