"""The Kubernetes operator of Tidelog.

What it decides is pure: `plan` looks at a cluster, at what is there, at its load and at the time, and returns actions as data.
Nothing here but the shell around it may read a clock, a file or a socket, or know the Kubernetes client.
"""
