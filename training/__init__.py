"""How the small model's weights are made: pictures, clips, degradations, training, evaluation."""
