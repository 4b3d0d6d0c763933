"""Entry of Flower: `celery -A tasks.monitor flower`. It watches the tasks and loads nothing of what they do."""

from config import load_settings
from tasks.app import build_celery

app = build_celery(load_settings())
