"""The leaderboard of super-resolution networks: same pictures, same minutes, same clock."""
