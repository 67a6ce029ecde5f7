"""The offline API: sessions, model runners."""
