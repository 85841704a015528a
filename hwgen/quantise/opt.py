import os,json
OPT=dict(off='beta',alpha=0,walpha=0,std=0,qk=0,margin=1.0,vmargin=1.0,centre=1)
OPT.update(json.loads(os.environ.get('OPT','{}')))
