"""A vault as the first version wrote it: every later version must read it.

The bytes of each file in base85. Never to be made anew: if a test with them fails, the code is wrong.
"""

# ruff: noqa: E501

from __future__ import annotations

import base64
from pathlib import Path

POINTS = ("20261121T100000Z-f7021299", "20261121T110000Z-2e940444")
BLAKE3 = (
    "f08905b3d4062d56bc7ae9b6ab4d10d55d9afce5abd060911e9c142f23294485",
    "e50a60584c179cc2d1347e32d79334d5e58674e26e617ecf71302f4e5f7d44ed",
)
"""Content of the disk ``disk`` at each of the points."""

FILES = {
    "key": "dkP>RB4%%LZDDjGIv^r;ZDMO6Yh`&NED9hXB6ekRb7^mGB03;3ED9hXB5P%NUuk3_Iv^r2W-u~iVqrEhH!wM3Vl`"
    "wUED9hXB5P%NB03-<Gig(3Gev1bHgiTXbZcp9NHa|^Z8bwscvN>bH+5l7Yff5CI7xJ7Hezo*A_{#9",
    "vault/config": "dkP>RB4%%LZDDjGIv^r;ZDMO6c42jFbRsMYARr=ZWqDs?Xk}w-B03-<HD)knH!(CeWi&K6Gcz=0HDWn8GC5{AH8f"
    ")}H#lNpV_`5fIW=NpVlgo`VmW0qI5Rb7I5B25F*P<~V`OAuA}k6ZAR=pJd0%N{B03-<FlI0^V`5=8F*h(dVq!I9A"
    "}k6ZAR=&Ka$#*{bY*gLB03;@3LqdLAR=L9VPqmYAR=L9b1gD8HZ5mkZ6YiRARr(hB4clDaB^jHb7^mGB03-<dUJG"
    "SA}k6ZARr(jXkl|`B03-<Vr*e+Wiu@@H8vtF3LqdLAR=vHcwb{^b#7}SIv_DNH#avjF*Ym;ARr(hB5+}2YhQF>a%"
    "W|9B03;8H8nFf3LqeTED9hXB6eYQY;<2~WFk5sA~!QMW@BMwVP-QlH8o{rWM(utWMeTkF*IgkW@KY9V<IdHARr=k"
    "WpZ<AZ*C$wATbJk3I",
    "vault/index/4b7b077500c30f7728b980a90baea632190c270e5bff6b7b1fc929b907100e2a": "R!u@nQ$;~c0RaF200000k)Lm5vot#ZsG$C;spcHFS?Zo4GJXnO%Fw>x+vgLbSOow800000|79hfjZ0TI8_RO{VQ>"
    "gTdxEe-i4KsizPMX+Nl6vzK*VKmAGtlw<#6Y<f9=kCpcg{VJ;8$>QX=$d2UH34EE^+f3ETBG$(of?Zr|G*J3W6xV"
    "yX?LB+HinbLm}-?ym}Z;l;?vmSx2FdB#%W^$l0g!Z#VlfQXT8yM-vbh7@W%=mK($JqV^=bBPon_wZG9f%eE0L>n6"
    "D#5}{vK)S9Gi^w6nG{p4eB0d6uY8TuS-ZUz~99f_3PEKz)yfXAX&C|h~PAeG-k$7nr$6)yM*i_vd5t5s*xGpO3xP"
    "&-3;~2Fs4!E~2{zei-qa?ii2JT`6)Xz$dOfnb<ckhSQ9lcbT)i63x57&2Fo_)eI`I!Pd_Y8>3{mY+V?U7MEPd{_e"
    "@5YgyXp2`HAd?8?2EetwgO5$G)O90Cemv>-&vEY`Ay4#BE?;3WL{_>^#G(u2Cdgm&i_B!POTmR2kH%a4@`z&v$a%"
    "&gmq~KD&J{CIatj+$So|8J=B77a;*=cdAfwCwP~RyzR;NCJlNm7HjSM5Vo8LRyl~hRYQAm1Pb_>UR#5!l~rustMQ"
    "P;lr&l2k2uGBF7am8`zg1bwDig2#YPPqn=EKJb}vk8xVe54}##VZSY=yLV1$PMNoYrFMlRL;G_I`o4(qzR`iQp%Y"
    "lh#-6NPW{EcKbZA5HSK4_5kY^bV3$F?ar~hZqy7XzT&~b^^`MuXRocMo(u?N;$7zm>fI|kx`1W4`VdT<njVeX8F*"
    "bbvsDAhvlv`#LldA)Av4lTpJ5d5R)mlzX8;;A9&2D6Fk`DpsyIQo2d)T(~",
    "vault/index/5d5fbc907037bf93327d1f6344d1cdbe1f3e79a226869f5e72dc616c5724e604": "R!u@nQ$;~c0RaF2000002=ZZ2+>xkN;uFxv{xWhxzis6j--VwFfSH>1>u<JVfCT^m00000EUNAOJZ%=?dywX#7W)"
    "42ZPa&>NJfRn-$BGNzpA9^YjYmrK^_<EM1Iyc20M4{;dIwxO)_4X4LSG2qadsPD$E`PVkv9B#fqt-b=2NiVwG6O("
    "0^0@msU0R!0erE8xcs^j|xUfxDdY!r2J)E-G*APFE@0-jlP(F5EqKJ8WB01;s)pt+&>wQeOBCHHLxcf1Y?}5rf@q"
    "_uqDSilGi&lZoR2r$85F(Y&@T+H7`Ai8cZZz3$3L*!Zy*=Oh*8B;b0}5|0h+wbHt~R3<>9AiK=|h!7#Gq6?v{=)o"
    "j0bH~pvUoV-t=s0M0FVwH3T2Cjq$J#%KB4<3TWGe+YBXf^TTSkX=}EoUdDXD0m|mq%-Ps=}v>VzG!~Q9!Qjw;NJ>"
    "a*!?SAW|WFrXsaObs$Yd!`W5F3g-RBsAPZ9aw*y6FjLT2P+rheNh5mUd=C6&QXwzAB_tm<!>qvGo7R112PBd^$s2"
    "{f740g0$DkgYF5u}139KFWCckG48gmB~FOnC5r^5(C?|)9r^g#AqJFDkmq{3Zqv}k<diW~nr70xl8bp7OSkRi5#K"
    "PfMD3apY)J8DwNqklh!WC;CN^~Qlq4J7_x>#i|dz6cmy%pk^SWsj3u1fWEo>T<@vN;J6Y>QgC4xd{THS@78;G~*r"
    "o%cO3fY`a(x{GOQfGROskjDbYjHV+bL%;&q2O~ApXT(k&ae!GA_?96=9S&<y*Tp5=eJhjYBD5{oGRGrMt6vA*;Bd"
    "Ch~rm2#|;@5z0E@aGT8g}?aFL2T6b+ZPkXWLbVPKYK)5lCMj@P68vI^%sayI)quf5LYzaJgY$`Mv|W`0A6-J4<$T"
    "&Dyh&8SilGcS6gtCGrtjBf<",
    "vault/packs/02/023b3dcfd0f13415e68ce097d8cdee800f4c4d92be70a46dea80657184647459": "R!u@nP(edW0RR9100000b5F|J^F?0m^o_w$Pruv@R!u@h0RR9100IC25CQ-I`c*4`32qrmvprruiKocI`w5EacL4"
    "<}AI00|2P=c@lu(;B1$q&D@uHvS^Ypp+3N1m-{<s^Xk4Su@T1<7TlS$wS--N@pJkw?M-8nS^LzaC6(@AiHh;_*cI"
    "*lkf4<^#*#BAT!WVU}G@bRpy&WNH`kX<?pm3C+3d5*GtLJ*dcE-Z&tX~p*votZh=4}TcTNWUwv6CWATa2zZWX?6I"
    "-UBPUKp3S#fHt<k^zsB69j@<Ys9!+hy7G0j-j%J7wKR+M3ZRz!FAob#arexhI1-MH)rIkH>#*cefx0&*oe&wZ7K<"
    "n$K-1o>|nkrtwPwTiAzlOf9Vh483w<jDH=hs>}@Ksn*`&{&ZhA@w}X0T!*FQP{R2LU<`v6C|6<=7t$WIw}$PFzbp"
    "&0HR|8L6v!wcq3KJjv;e8zy4{4{-4%9xUox(>G|y|5Db4#cmZH7bmKsEa}hWH)+YKOKZDFN8?4X+WYtpS4DUPdd4"
    "Zov>Yx3o8h~*)lY!m*L5>-L*Ow*W%t5w0biP}iXiSdQ^EBdFKS?qI%9Fd&C#I1Ntq;naNTC&+%%M+`RguCy%-?Oe"
    "21lLU~>ae^U%wKS$*J^liAn{!*AM%0LPBNr0OWhAt1@(la<mMNR+JC5)0yH?Ro+e4Z3M+t$(@Os3(fpl;tv~D5Gl"
    "BbW!kO0|Mi;MnU{8W3`2>!uZc1q8?a5xKPU^PqZ7|l&Y<lJV6o7&O_{n>&?9-5O_QB@V_dF>UBXAR!u@h0RR9100"
    "IC25CQ-I)?>){rMi>NlLW}x^{%kL_F3Ql0U4Q`=sKUa!1@aY^S=vCjJA2B2*qF&pBkCY>Dtfy+~2h8MR+qPOx##m"
    "Yd0sZ5AAoiHsh{kQW1nkYL0B$_=0Y_=beap>C6&J%Mh{W8b7L<iB{mE05($(CK+Ce1EC^+8O#v!o80^}dWi7w9&m"
    "N2h94F05D0MNev}E+C)%YcleZ~nEiP~JzHcVLn^U9ndn%?{iwk^5VWIbHs35J~xL7`dN6Lb|<4ad={kYiZM#qWPN"
    "6zV&P4Bnjp7w9M?bk~+?_eGdgm|ENbuKP80OGV}8${I|dEDa34a|07KF!_J6Y^i9ZjPzTd)fTXtOSEKKhb%Ms&+s"
    "wV-X~^kqaE#95F=uCrKyZBsYwAc*5;zG%o-&Wf)ld0lh~DPOnmOP3^4!nUV|N!Vi%_m+{h+0#wr?t!F2Q<O8$2KP"
    "|>bi@2&02Obp*1z0ap&6YvrPek*Y_3~{o#kT;=^G|rKqf^Xs2{V+c(7OaU^(SO%2uEu_0v`363~8n?;h^SH!ifSN"
    "qgHOmmTCaEclv3q<*m)Arc+uYhv*q_O*pHzL1Agg03qeI_1}24mhboh4`3;T`x$+uX$$kx`5=OKrHksA2>%sZ<1`"
    "#R3xt}1LLa$7^^T-G#(=lQxr7S>&B@+VwG@Ma{32l!5~6}c4f+5H4o&<@p}u&NlzzqpKXzP=10w^gNm-rhByj`m&"
    "Z2ftWL8b{4({w$<xicJMhi$#R!u@h0s#O3fCB&kiU9xst)xJWO*clMCp}~yDKxScrhlOQlwDGHW^X2f+3~M9)D^%"
    "3>}38JfMXd7^*IN1m(>d2i1CWI2^hpaa6sl-cEQJQu`Q*0sg|i%pyq*?t+sSxI@?k_2DNeakEhK<I(nk(Z#OA4oE"
    "09O;=WsM+_knXkVt;ngoN#c8Zz6D{h99pfuG;lbb$0?T>}|g5uS9g_)9EHp!%R+<EXT=8EGE*Cf6dL|Hi3*$R2q#"
    "*WvLveB`yrtw`qEd@s3es&9%GyEnxDKP&~w^@|DiC&UETTEa6V;2_~Z-ux#vxBu^7l}ORHY<=E-z80tlMca$HRha"
    "Mmyg4saK=z(xCKa<}c)cMfe!1H*UKdhGja_9Zecb*~#=kM#cC-drvzUHMrDSVo>Z6%~agZt7_*{i9oY(-m{HaH({"
    "&3b9N4v&w?>Av&9xb3U0tO!_FGag?dO$5OM%)-!F+cuQdq@GA4F}Q3e`1vG3I#H~ts3q!q9#qG;(Vu;OM@AzK#lZ"
    "ZZ2!DXWTlZh=eYWzy5yI@wlLVpmzQNn=lenT%g4wk<zScjv3vKM?@o<Hbk!W&kqB-@L!nkpLPY`r007Vd0093000"
    "68>d6@Tlfr!i7d{N4Rf_v22slr5w)p@}?OB-9g8kQ-|vi0D@km;b-CN~tV;KTlB^gPuoQSqVrp%YxVO`y$KroZ=S"
    "!i55W=M;+P*<Whz<er=5AD8u5bOq4ZCQ_;WL9S9xSyg-<wIbOHhyM%zTdyxr6drwSULIun*3-NOo)AGv;+{?mb61"
    "qA#{i8aWi}VwgXNtZiiJj{{{%>;2`A|DMo*Ay3-T{UL>U*8J{fEOnZ(r#DaF0;bZ{~B-9Etu-&Pv|e3!CkAynYrU"
    ";6vpcj=Aq-y(ysmXhw)PyX|$0}J|H&>-m3(|)KwcQZ0+i0jcW_%}^B9PkHF!n`s<JiX$Y18;enAzk>X0mKZGZXDw"
    "ne<hj)>`S<5TgM;k3J2-K7l|567gkL|MF9W+0006201yHI0Qyxce+h0GO0zv)K8dHu!utt|>30DID<8$%<_9Z-?3"
    "7TOH3fPReDR{6=kxTr_*P9qMF9W+0006201yHI0M=v3_@%m&&65Pk+V!rmzxG+*{s9@8oaj2Aw!r!e2J^oQO^mjA"
    "qX@-d6rUQI&Q?uAMFIf;0DuDk0Ez(s0Ij4zjZHU3peH?K9w{`k7N&oo{gho&cV=%Ug4yw}IMfxu1MFn}7=U9L3iU"
    "Y$byiJ6MFIf;0MG#d0RI300IW%QnD=^th|Al2QObgXd(_#f!bFMHdBHnN8(X~^mMP7$_29#h>7dpoHx#Yl!&Xf~O"
    "H@HgOauS`000000Lcdc0000000000000000D7GYkEMDP=@hiGelDeq-72AYe)B1LJrVKxx`|{8tN",
    "vault/packs/f3/f3fcb4fe1abf4a9cac2560d24dde60c809fb1fac60fac94ba0112b89c347e57d": "R!u@nP(edW0RR9100000b5F|J^F?0m^o_w$Pruv@R!u@h0RaF200IC2*#H0lNqHskrMYzDUrmJE4bZ@b>^r?(zS&"
    "{02SDoB@LhGb*|b8V*%!iKr0~MQ<P5j}&5sDf?J%IpUK%X~2O%v`608P@EZ7Y!3}iCUJj7Q$4`OwVg&m99S%pPWz"
    "vj_M+6-qH<}+%ln%2AD0-fUG>SY({#{Z%q4|2@SHm6+tm=YW2tn2YBgTE%3DnPU;$oIifFW-r$b(>jjW2vX5qs=x"
    "J5U}FULQLld!p3qEQS?85hY0$I2WANHX^o@n(938!B;T|EoHZnT3n$zt1DA`xK4(QQ2L?)>fwf1zQmIFfr>}e1KN"
    "}vuT%=zI8^2eqwvGd))Y0A-q@_kC*s>~Z+yu`4Lsm^fMFIf;0GI**06PHy0C|i6Q&$-Ethdzdvmt%aIz?Sm4is!m"
    "mtZg`EdhF`#Ci?e)hCRw1$UG|TM8?ZMB92@(vK^lwcF@`2kJ=%&FI{|k+q>*IC(#m#)Lq3m0ReFo8kL?A(UzS6-P"
    "{l(@HqG+;ano%BI~&&gv_Ouogw!$Sj;?QhW$jU)H>BhgUEsOYo}D#~1)jt_6lh5hDX9sc*;X_7P&G7_eRWE~>8V4"
    "fDFX{NUG#=x=UN%}R{N8K)&0BT+}MD!s!F9E!s3DOwQg57~z?Z5<Pz8R(8CK7(a|DIBrf>xZnQsX$LI?A!xE@@$("
    "v;`h`F7%D7W?YQ=&*KK?$Ui4s)q9?^<!T#swt4EQ6Qhrwa&AXKdY&6)F>kJBch6BmQmX1v8TKIVGrS&!qY(^C^69"
    "IMpZ-_>;A_Z=dyJ4*iYhPioUqoF|h}3a}o|eBJ@~x2m^9OEALM5q*UXu}a11_f*zWy|JMbx!+R!u@h0s#O3kO2Sy"
    ")c^nhs<_!uui()bqF(sUq;sbrdk%hz%}87$R5}7mzH-V8iTJ|&{Mb^gG4^f<6s1$73xd>~{=c&nvJaD-z5L8gJ!_"
    "6}Xx%t6LW>%&{a#qq9Xq+}Ea;*6Mv6$0(ci%_w$M>jaAc`&JR`2d0*YZ>i}fF-2?9Ezij~lpcX4T246rHjrXQL&l"
    "yhv-I?pwgWc+w65(NC~1)WIZl$zexsO`eT^IGo#p4*%gCX4o4&U!Sk>`e<yN^h<-(lO4$q)0jWZrD=`;)J;Tm(J0"
    "RU6(O;fJ*J;`)~V`ngwq1`keKjT+pyJR6ttNZKxEi#ZO;x#%@2}mGB=VJlOC>`zRbU(N;}DMF9Z-000620NDTl07"
    "-cz@TIwQ<6ljL+zrschU`1NUB202um?cu*zjF-w%N2oquCe2V5IQE!Q>3L|5i;xMFIf;0GI**06PHy0C|i6Q&$-E"
    "thdzdvmt%aIz?Sm4is!mmtZg`EdhF`#Ci?e)hCRw1$UG|TM8?ZL{?2gMFIf;0FVIy0M!5h0IImzP_N+87@}VI&ZK"
    "jvAbSpeip@w|BUCy9O1^T+42k%{{QTHbtTFa(2o$ALq*hHrOH@HgOalM_000000LcRY0000000000000000B*(9W"
    ">#4S0wGySeJ#V^<mb4mgf&P(>3ZebnFcHu&j",
    "vault/points/20261121T100000Z-f7021299": "R!u@nQ$;~c0s#O3000002RAV~(FB@mlC=0m?7roeon+Vhde4`YBo*)@NuSoS_zD0300000ST<KD2a-wleAyWY1#+"
    "Gf357EYnqN4Y&TYc$B$(=FDR=I{g;5Z_rAJwcj|YV}7$s|qA}t#W7H(x;m8WZcHx`bH@Q#IOcg91#Ui%>(&pT6nB"
    "_9Pd$M~i)GOsijzfGMPSLj$8QL~=gyNPx0hzv`m)Z^Iy{U)G3YpI&EI7B)=6m~fZY;*HukQTtjG9C2<tOfejdaM&"
    "EJ8ui(rvdD`3M4TF&zK-8eFzux4*{06oYK{js{b#j!God2vboDmtra&S;U@s%X<OU5Q@gR5=}8p$>^VYBiAFX7j`"
    "-(qPacn|M@<m6W_1lMReg7jJwdlLGE<sq?b+5<!`!qh2A{Lj0;jvS<F!g(Pm18$3l#);qxJ&eM~kY=Fo1J^4nkyd"
    "hV{(I&+Gw-%{SSt<__VAex|=3*Q9sg@Fsyf7{2%bt{w!!y@|<S)bbZ4nbv-2?b=S2hv(c`&O|3e2MUSqau`L^ltJ"
    "ML&-Jv5!l=^NhA(@jwfvT&+b3`Ntw@X?oDGT{!MT3c#}$=Hal{s4cq+ff@|s?}7IA<P5L(}yW5^?R`kfS(Q|-$4U"
    "8lTM;u<g*(sH2ut;M=#mZ=(z>O30(K@{j~+eeK~=jJTMfkM<Wm_^`oUVJ0Y;kGYvp<tKlGl~mV%v_2K5zcBftdv9"
    "9A#;si&U9S$*?jPkD?yCm7>;=(f~}?`us)LCfD)6BOf^beu^xM6DFN|ZwQ^};sFQRJXnR|`YZTrIH2%Qlcbz<Yd-"
    "Q24J^XP{-3L_U?C%$>;co$}veuH=nGrO|N`-|YddCI&?<(IIp=GR4%+JVm8LQ)TCGZDBNMemyG;H*K0E)z2GQez-"
    "Z0jvl`l~dD4E-dK<mtgKeVP3#f$uAe9!|aMTiJd&R|1To#VRu6J(IzWMHA6#CRycA_V3=QRD&-ukuUM$PEh7%i;u"
    "yof^!Y=OCwM`)|Xh&bBUce!_{_K-doj$*VPGwZW%fn1JX8Q+s*GnK5_%g%wQqG#X+UOspkTK4>uSnXv!2hloDm=s"
    "k1jAum6Y_n8=g9V9+8h%B#fLEo?<hl>ypODRO-c_5w=OS~&ZN`eL}NJFLa`OD_qHcV~v5SV$y<SiCmQY7M45E@8u"
    "-7N~uUKUN31MFveo<$8v@u?{uH_fz+te#ljpG*@t0rKR;431i|THuk>M5z03mD3}9{M6tzYa}vdIL87>wX~7=~M("
    "tqOgRy9U_>dTP3#(31oykm^8W6sNGkH|@_G!lg62AzFt;S68Ej?EI0HUVE7?u",
    "vault/points/20261121T110000Z-2e940444": "R!u@nQ$;~c0s#O300000>Jda&d75@<-#x_H&3*dwS+Sd0$4Mpd#)RJlQt~N)APWEh00000j}lSEXr>V{cDI$1@=R"
    "X4mBkNSU!?T1RDrVGE6CG@Hq|;|v0(QiR_Jd~ni?pG)|@$UdID;tG$k~kCPh*%nMQT8gYpkP?%h+q{LPUs7*Tq-b"
    "W)oSQLQoieZ`OQaLZ;}Rdhm-(B08|&b2^arLbE&DfNWz`BC%sYU|3bT7|ax_6oPqd`W8egnhL%hZrD`0C3U;zd>6"
    "+*Kn8JKpU6D$cpQ17S+usr1+p;nF=>-<p<(|&`&`AYjxfY5~B)8nr0k3TRo=wLEON%J~eczcFei~=NWSvsqmpmLM"
    "<s}bH?uoJ1m${NR6GvSl?qpxmneHzG;{hV9Hf{PZY3$_^hgvw@QbbLdeTNRu7=A78<eNV?FLb=6<=5rzQ66;QYnj"
    "e4)h=;?yL(H7H3j+U)GF^+Ba;_IPrV8&i>)$H+?u97Myn*Y<REK=}2Qz2s9ee&)PmDR?y8n@noPzJb*-G;&-`3S$"
    "bJ{-Yg5yis4ihED&RgmzWtVC9G)vcz+jL>FLVL|KHSYMvTiypM9nAea@_lbPW9x8se>v~Si>zq%Ly>w&$4Dn24K&"
    "pPq78N`(;shs|A-RT^OzrGh^^II_IM;vExsFWmrt3fiCAZYd(cT&Ip7Xy_6+_iij+>QPUGLHwT?SvZ2^d$KK{Mfd"
    "q4ux9gvi^yX);k7H&EnjrS@$qy4&p-jvzzsm#)_}JL6IylZIX5H8t05rsf)AlC-b1OqFaZs3H_rlr;kg-l881`V&"
    "}Mj%M)I8v8fa)e(!GFm*lsV*giyd9mCve71^!QF9!J7oxPz4(PoaA#xg66{%kt~XSaPkLxmzA_J%7$=TX|YFy)M~"
    "sxVzt+71R_kxK%IQ~LpCVyWP00@wJwuzp)Q>I4yk@<|fqxi$moiZ;;S&_e$wlEH%uX&9;x>zGlDBu47yt|Mua##2"
    "?ol`>_w+M?=+0dykkS{}b%A5y(et7OrP-(3urK)~S-Kwov6v(NOo1op}4HhmdK$I=Ttf|ib$3GY4Z-e~S_Nz6g-t"
    "<!~GC?qS_xp&N5-D%cMf%ngk@j@>V032a&D(<8nw%xB~z03~W30?tg8-^Rbq+=QEpgoGtNci2^5-0&GHHdW}J3#F"
    "5JYoT3T1I^Lmn@O3jeH(;2E4$M6cOIZK|@tF;NCG0sAt#~)e7bsPcXg2jm<D{+_D91G?)tOms%4+Y}aII7F4!h)V"
    "p(lnbrFd)A>)t6{nLTOWMoszyhgNm8D}sc2_JHHf_~?GE+iCH7`M#{dDp^<jjIs<1DD~Geo(1Z!g}LV_@<J#h`L8"
    "?C(r9|GH(RHYm{",
}


def write_frozen(folder: Path) -> None:
    """Put the vault into ``folder/vault`` and its key into ``folder/key``."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b85decode(text))
    (folder / "key").chmod(0o600)
