"""What goes in (`statements`) and what is kept (`ledger`)."""
