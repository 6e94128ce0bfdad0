"""Generation by SGLang servers over HTTP: launched and watched here, or found at URLs."""
