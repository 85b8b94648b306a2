"""Pictures of an extraction for people to look at."""

from gpu_extract.report.gallery import contact_sheet, write_gallery

__all__ = ["contact_sheet", "write_gallery"]
