"""How somebody is told: signed webhooks behind a fence, e-mail, chat. Read senders.py first."""
