"""Reports for people: the text of a plan, a survey or a file, and the gallery of some cells."""

from gpu_extract.report.file_text import file_lines
from gpu_extract.report.gallery import contact_sheet, write_gallery
from gpu_extract.report.survey_text import plan_lines, survey_lines

__all__ = ["contact_sheet", "file_lines", "plan_lines", "survey_lines", "write_gallery"]
