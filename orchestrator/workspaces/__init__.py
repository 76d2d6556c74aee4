"""Where workspaces lie: `directory` works anywhere. `paths` is the only way into one; `blobs` holds what comes in."""
