from .html_parts import dropped as dropped
from .live_search import watch as watch
from .page import build_page as build_page
from .page import launch as launch
