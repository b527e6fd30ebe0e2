"""What ``coati-ext demo`` measures: a reward model and a PPO run, as a user's script has them."""
