"""The embedded default: a real small Llama and a data set this project wrote."""
