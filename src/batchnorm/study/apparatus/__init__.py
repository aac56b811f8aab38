"""What claims measure with: networks changed in one thing, trainings, gradients, statistics, data made worse."""
