"""The report's page: runs into chapters, chapters into markup."""
