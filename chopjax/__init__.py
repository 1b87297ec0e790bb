"""Make a language model smaller, natively on JAX."""

import logging

# transformers logs at import that PyTorch is missing. chopjax uses none of the parts that need it.
logging.getLogger("transformers").addFilter(lambda record: not record.getMessage().startswith("PyTorch was not found"))
