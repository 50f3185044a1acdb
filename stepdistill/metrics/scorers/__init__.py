"""Scores of single images and their prompts."""
