"""Pictures and texts about an extraction for people to look at."""

from gpu_extract.report.gallery import contact_sheet, write_gallery
from gpu_extract.report.survey_text import plan_lines, survey_lines

__all__ = ["contact_sheet", "plan_lines", "survey_lines", "write_gallery"]
