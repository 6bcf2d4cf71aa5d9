"""The page: jobs, one job live, its report, what changed since the previous build; readable with scripts off."""
