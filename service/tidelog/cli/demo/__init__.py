"""`tidelog demo`: the whole service, played in acts for somebody who has never seen it. `make demo` runs it.

command  the command: a folder for the data, the acts in their order, nothing left behind
text     the text of this machine that goes in and comes out again
service  `tidelog dev` as a process: started, killed, started again
acts     what is done in each act; everything that is said is returned by them, measured or read back
stage    how it is shown: on a terminal with bars, elsewhere as plain lines
"""
