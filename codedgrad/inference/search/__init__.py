"""`design`: which redundancy a model's queries should have, by measurement."""

from codedgrad.inference.search.candidates import Search
from codedgrad.inference.search.designing import design
from codedgrad.inference.search.table import Candidate, Design

__all__ = ["Candidate", "Design", "Search", "design"]
