"""What is kept: answers, jobs and usage in Redis; queries, attempts and events in SQL."""
