"""pure: how long a primary may serve, and when a secondary may claim.

Leases run between the members of a partition and never through the meta server, as in
the PacificA paper ("PacificA: Replication in Log-Based Distributed Storage Systems",
2008, section 2.3).
"""
