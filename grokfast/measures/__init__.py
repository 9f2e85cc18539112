"""What is found inside of models: functions of plain tensors, batched over leading axes."""
