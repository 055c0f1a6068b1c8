"""How good a detector is: mAP, or agreement with its teacher."""
