"""Whether the records that arrive are still like those the model was trained on."""
