"""The derivative of a training batch's logits along a direction in weight space, by whichever way is cheapest."""
