"""The harness catalogue: the declarations that are shipped (the `.toml` files beside this one) and a person's own.

declaration   one file's text → Harness          folder   the files of a folder → Catalogue
"""

from orchestrator.catalogue.folder import load_catalogue, shipped

__all__ = ["load_catalogue", "shipped"]
