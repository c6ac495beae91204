"""A vision-language model that lives outside transformers, and its family for tokenreduce."""
