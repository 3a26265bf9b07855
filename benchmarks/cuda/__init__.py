"""Speed and memory on a GPU: training, surgery, and the orders in which an adapted layer computes."""
