"""Which drafted tokens stand?"""
