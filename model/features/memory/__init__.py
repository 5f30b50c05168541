"""State that is kept by key beside the experts: ages, histories and rates of values."""
