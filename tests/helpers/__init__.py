"""What several test files share; worker processes that tests start import it, too."""
